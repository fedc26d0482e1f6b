"""The published series, the claims of the paper and its tables and pictures, on any results."""

"""What studies of several papers share: claims held against numbers."""

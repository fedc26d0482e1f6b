"""Run records: what was run, on what, with what result; shown, compared and run again."""

from reproalign.common.records.fingerprints import fingerprint_folder
from reproalign.common.records.run import Run

__all__ = ["Run", "fingerprint_folder"]

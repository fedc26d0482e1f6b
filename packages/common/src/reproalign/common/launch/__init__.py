"""Starting a run: in this process, in several through ``accelerate launch``, or as a SLURM job's script."""

from reproalign.common.launch.start import start

__all__ = ["start"]

"""Starting a run: in this process, in several through ``accelerate launch``, or as a SLURM job's script.

Nothing is imported here: Python warns of a process's own module that its package has imported before.
"""

"""The fault drill: real commands are killed, signalled, started twice, and given damaged files and full disks."""

"""What Ray's launcher does with machines of clouds, for a process that must not import Ray: one program for each cloud."""

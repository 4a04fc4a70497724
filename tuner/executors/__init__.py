"""Where trials run: in this process, or in pinned processes of this machine."""

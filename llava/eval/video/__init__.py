"""Questions about videos: frames, and Video-LLaVA's program."""

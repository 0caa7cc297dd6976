"""From questions to an answers file: runs that can be stopped and continued, and the code shared by the programs."""

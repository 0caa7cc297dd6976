"""From questions to an answers file: runs that can be stopped and continued, and what the programs share."""

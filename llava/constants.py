"""Numbers and strings that every part of LLaVA agrees on; data files and checkpoints rely on them."""

# Token id that stands for one whole image until the splice replaces it by the image's visual tokens.
IMAGE_TOKEN_INDEX = -200
# Label of a position that carries no loss.
IGNORE_INDEX = -100

# What a user writes in a query where the picture shall stand, and what the prompt then says.
IMAGE_PLACEHOLDER = "<image-placeholder>"
DEFAULT_IMAGE_TOKEN = "<image>"
# Optional tokens around and for images.
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"

# Serving, in seconds.
WORKER_HEART_BEAT_INTERVAL = 15
CONTROLLER_HEART_BEAT_EXPIRATION = 30
LOGDIR = "."

"""Numbers and strings shared by all parts of LLaVA; data files and checkpoints rely on them."""

# Token id of a whole image, before it is replaced by the image's visual tokens.
IMAGE_TOKEN_INDEX = -200
# Label of a position that is excluded from the loss.
IGNORE_INDEX = -100

# The placeholder of a picture in a user's query, and in the prompt.
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

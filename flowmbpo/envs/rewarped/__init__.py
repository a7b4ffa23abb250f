"""Tasks of rewarped, an optional extra: dflex's tasks on NVIDIA Warp, with physics of their own."""

"""The camera's stream: pairing images with camera_info, and which pictures may be used."""

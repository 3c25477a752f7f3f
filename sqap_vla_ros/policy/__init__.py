"""CogACT: image and instruction in, action chunk out. Nothing here knows ROS or compression.

Import the module that is needed (`policy.cogact`, `policy.checkpoints`, `policy.preprocessing`, …): this package
imports nothing itself, so the nodes' parent process can use the preprocessing without torch.
"""

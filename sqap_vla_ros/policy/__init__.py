"""Image and instruction in, action chunk out: CogACT and nothing else, without ROS and without compression.

Import the module that is needed (`policy.cogact`, `policy.checkpoints`, `policy.preprocessing`, …): this package
imports nothing itself, so the nodes' parent process can use the preprocessing without torch.
"""

"""The kinds of frames between driver and workers."""

import struct

CLOCK = struct.Struct("<d")  # seconds of `time.monotonic`

# Driver to worker
ROUND = 1  # what all clients of a round share
RANGE = 2  # clients to call
CHECK = 3  # what the worker must have in common with the driver
STATE = 4  # a client's state that was wanted
# Worker to driver
HELLO = 16  # the app is built, or what is wrong with it; and the worker's clock
ANSWERS = 17  # replies of some clients of a range
BEGAN = 18  # the app is about to be called for a client
STORED = 19  # the arrays of a round lie in a file of the worker's machine
CHECKED = 20  # what is wrong with what was checked, or nothing
WANTED = 21  # a client's state that its machine should have and has not

"""What tests share: one thread, so that the figures do not depend on the machine."""

import torch

torch.set_num_threads(1)

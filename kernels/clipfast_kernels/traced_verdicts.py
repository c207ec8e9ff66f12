"""What a traced call reads of the verdict: torch.compile takes the answers as constants.

Apart from `verdicts`, and imported by traced calls alone, because `torch.compiler` brings a second
of imports. A compiled function keeps the choice that it was compiled with.
"""

import torch

from clipfast_kernels import verdicts

pinned = torch.compiler.assume_constant_result(verdicts.pinned)
ranking = torch.compiler.assume_constant_result(verdicts.ranking)
trusted = torch.compiler.assume_constant_result(verdicts.trusted)

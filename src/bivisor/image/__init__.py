"""The default guest: a stock kernel from the distribution, and an initramfs made to measure.

`default_guest()` is all that most callers need; `initramfs.append_exec` puts a command behind its initramfs; `prepare`
makes guests of other kernels.
"""

from bivisor.image.default import default_guest
from bivisor.image.guest import Guest
from bivisor.image.progress import ProgressFactory, on_stderr, quiet

__all__ = ["Guest", "ProgressFactory", "default_guest", "on_stderr", "quiet"]

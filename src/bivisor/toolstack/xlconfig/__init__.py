"""What `xl.cfg` files say: their syntax, and a domain's configuration from it (xl.cfg(5), xl-disk-configuration(5))."""

from bivisor.toolstack.xlconfig.config import Action, DomainConfig
from bivisor.toolstack.xlconfig.disk import DiskSpec
from bivisor.toolstack.xlconfig.keys import read_config
from bivisor.toolstack.xlconfig.vif import VifSpec

__all__ = ["Action", "DiskSpec", "DomainConfig", "VifSpec", "read_config"]

from vmhaul_lab.testing import labvc_binary, quick_site

__all__ = ["labvc_binary", "quick_site"]

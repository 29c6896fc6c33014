"""Sweepers and launchers of vlmkit, where Hydra looks for them: it takes plugins from `hydra_plugins` alone."""

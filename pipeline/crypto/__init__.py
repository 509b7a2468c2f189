"""Encryption of what a repository stores. Words: the **master key** is what a password or the server
opens; a **keyring** is all keys that come from it; **AEAD** is encryption that notices every change.
Primitives are libsodium's and BLAKE3's; nothing is made here.
"""

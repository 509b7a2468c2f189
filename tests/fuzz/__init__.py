"""Every parser of bytes that come from elsewhere, fed with what nobody meant to send.

`make fuzz` runs each target for FUZZ_SECONDS under atheris; the test run gives each a bounded number of
inputs. What was found and mended is kept in seeds/, one directory for each target.
"""

"""The console: pages for people over `backup_server.services`.

Words: a **login** is a signed cookie made from the API's token; a **link** opens the console once
without the token; a **fragment** is the part of a page that is loaded again while something runs.

Promises: nothing comes from elsewhere (own styles, own script); a page changes nothing but by a POST
with the login's form token.
"""

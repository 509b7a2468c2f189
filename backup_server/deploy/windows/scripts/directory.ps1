# A directory with the access list of the one that it lies in: of Program Files, where only administrators write.
param([string] $Path)
[System.IO.Directory]::CreateDirectory($Path) | Out-Null

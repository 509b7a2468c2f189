# The end of a log; nothing where there is none.
param([string] $Path)
if (Test-Path -LiteralPath $Path) {
    Get-Content -LiteralPath $Path -Tail 4 -Encoding UTF8
}

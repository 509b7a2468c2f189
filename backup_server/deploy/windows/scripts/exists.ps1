param([string] $Path)
if (Test-Path -LiteralPath $Path) { 'yes' } else { 'no' }

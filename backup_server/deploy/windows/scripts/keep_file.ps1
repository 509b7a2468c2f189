# What was sent in parts takes its name, if it is what was meant.
param(
    [string] $Path,
    [string] $Target,
    [string] $Sha256
)
$is = (Get-FileHash -LiteralPath $Path -Algorithm SHA256).Hash
if ($is -ne $Sha256) {
    Remove-Item -LiteralPath $Path -Force
    throw "$Target arrived damaged: SHA-256 $is instead of $Sha256"
}
Move-Item -LiteralPath $Path -Destination $Target -Force

param(
    [string] $Path,
    [string[]] $Keep
)
foreach ($one in @(Get-ChildItem -LiteralPath $Path -Directory)) {
    if ($Keep -notcontains $one.Name) {
        Remove-Whole -Path $one.FullName
    }
}

# A part of a file. The first makes it anew; the others must fit behind what is there.
param(
    [string] $Path,
    [long] $Offset,
    [byte[]] $Content
)
$mode = if ($Offset -eq 0) { [System.IO.FileMode]::Create } else { [System.IO.FileMode]::Open }
$file = New-Object System.IO.FileStream $Path, $mode, ([System.IO.FileAccess]::Write), ([System.IO.FileShare]::None)
try {
    if ($file.Length -ne $Offset) {
        throw "$Path has $($file.Length) bytes, and the next part belongs at $Offset"
    }
    $file.Position = $Offset
    if ($null -ne $Content -and $Content.Length -gt 0) {
        $file.Write($Content, 0, $Content.Length)
    }
}
finally {
    $file.Dispose()
}

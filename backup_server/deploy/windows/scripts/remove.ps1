# A directory or file with all that is in it; it may not be there. What was just stopped may hold files a moment longer.
param([string] $Path)
foreach ($turn in 1..20) {
    try {
        Remove-Whole -Path $Path
        return
    }
    catch {
        if ($turn -eq 20) {
            throw
        }
        Start-Sleep -Milliseconds 500
    }
}

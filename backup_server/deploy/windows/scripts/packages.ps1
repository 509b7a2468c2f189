# Wheelhouse: empty, or a directory that holds every requirement; nothing is asked of an index then.
param(
    [string] $Python,
    [string] $Wheel,
    [string] $Wheelhouse,
    [int] $TimeoutSeconds
)
$words = @('-m', 'pip', 'install', '--no-input', '--quiet', '--disable-pip-version-check', '--no-warn-script-location')
if ($Wheelhouse) {
    $words += @('--no-index', '--find-links', $Wheelhouse)
}
$words += $Wheel
Invoke-Program -Program $Python -Words $words -What 'installing vmhaul' -TimeoutSeconds $TimeoutSeconds | Out-Null

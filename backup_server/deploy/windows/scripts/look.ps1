# What the machine is. Each line is NAME=VALUE. Changes nothing.
param(
    [string] $InstallDir,
    [string] $DataDir,
    [string] $Python,
    [string] $TaskName
)
$windows = Get-CimInstance -ClassName Win32_OperatingSystem
"system=$($windows.Caption)"
"build=$([System.Environment]::OSVersion.Version.Build)"
"architecture=$env:PROCESSOR_ARCHITECTURE"
"clock=$([System.DateTimeOffset]::UtcNow.ToUnixTimeMilliseconds())"
$me = New-Object System.Security.Principal.WindowsPrincipal ([System.Security.Principal.WindowsIdentity]::GetCurrent())
if ($me.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)) {
    'administrator=yes'
}

$found = @()
if ($Python) {
    $found += , @($Python)
}
else {
    $launcher = Get-Command -Name 'py.exe' -CommandType Application -ErrorAction SilentlyContinue | Select-Object -First 1
    if ($launcher) {
        $found += , @($launcher.Path, '-3')
    }
    foreach ($one in @(Get-Command -Name 'python.exe' -CommandType Application -ErrorAction SilentlyContinue)) {
        $found += , @($one.Path)
    }
}
$question = 'import sys, venv, ensurepip; print(sys.executable); print(sys.base_prefix); ' +
    'print(chr(46).join(map(str, sys.version_info[:3]))); print(sys.maxsize.bit_length() + 1)'
foreach ($one in $found) {
    $words = @($one | Select-Object -Skip 1) + @('-I', '-c', $question)
    try {
        $answer = (Invoke-Program -Program $one[0] -Words $words -What 'asking Python' -TimeoutSeconds 30) -split "`r?`n"
    }
    catch {
        continue
    }
    "python=$($answer[0])"
    "python_base=$($answer[1])"
    "python_version=$($answer[2])"
    "python_bits=$($answer[3])"
    break
}

foreach ($directory in @($InstallDir, $DataDir)) {
    if (Test-Foreign -Path $directory) {
        "foreign=$directory"
    }
    $drive = New-Object System.IO.DriveInfo ([System.IO.Path]::GetPathRoot($directory))
    "free=$($drive.AvailableFreeSpace)"
}
if (Test-Path -LiteralPath (Join-Path $DataDir 'enrolment.json')) {
    'taken=yes'
}
if (Get-Task -TaskName $TaskName) {
    'service=taken'
}
$inside = Join-Path $InstallDir 'releases'
foreach ($task in @(Get-ScheduledTask -TaskPath '\' -ErrorAction SilentlyContinue)) {
    foreach ($action in @($task.Actions)) {
        if ("$($action.Execute)".Trim('"').StartsWith("$inside\", [System.StringComparison]::OrdinalIgnoreCase)) {
            'releases=taken'
        }
    }
}

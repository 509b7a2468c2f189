# Read once into each runspace, before any step.
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'

function Invoke-Program {
    # Runs a program without a shell. Its input never stands on a command line; of its output the end is kept.
    param(
        [string] $Program,
        [string[]] $Words,
        [string] $What,
        [string] $Text = '',
        [int] $TimeoutSeconds = 600
    )
    $quoted = foreach ($word in $Words) {
        if ($word.Contains('"') -or $word.EndsWith('\')) {
            throw "${What}: a word of the command cannot be quoted"
        }
        '"' + $word + '"'
    }
    $start = New-Object System.Diagnostics.ProcessStartInfo
    $start.FileName = $Program
    $start.Arguments = $quoted -join ' '
    $start.UseShellExecute = $false
    $start.CreateNoWindow = $true
    $start.RedirectStandardInput = $true
    $start.RedirectStandardOutput = $true
    $start.RedirectStandardError = $true
    $start.EnvironmentVariables['PYTHONUTF8'] = '1'
    $start.EnvironmentVariables['PYTHONNOUSERSITE'] = '1'
    $start.EnvironmentVariables['PYTHONSAFEPATH'] = '1'
    $start.StandardOutputEncoding = [System.Text.Encoding]::UTF8
    $start.StandardErrorEncoding = [System.Text.Encoding]::UTF8
    $process = [System.Diagnostics.Process]::Start($start)
    try {
        $output = $process.StandardOutput.ReadToEndAsync()
        $errors = $process.StandardError.ReadToEndAsync()
        if ($Text) {
            $bytes = [System.Text.Encoding]::ASCII.GetBytes($Text + "`n")
            $process.StandardInput.BaseStream.Write($bytes, 0, $bytes.Length)
            $process.StandardInput.BaseStream.Flush()
        }
        $process.StandardInput.Close()
        if (-not $process.WaitForExit($TimeoutSeconds * 1000)) {
            & "$env:SystemRoot\System32\taskkill.exe" /T /F /PID $process.Id | Out-Null
            throw "$What did not end within $TimeoutSeconds s"
        }
        if ($process.ExitCode -ne 0) {
            $said = ($errors.Result + $output.Result).Trim()
            if ($said.Length -gt 4000) {
                $said = $said.Substring($said.Length - 4000)
            }
            throw "$What failed with exit status $($process.ExitCode): $said"
        }
        $output.Result
    }
    finally {
        $process.Dispose()
    }
}

function Test-Foreign {
    # Whether a directory is there that an administrator or the system did not make: all users may make some beside ours.
    param([string] $Path)
    if (-not (Test-Path -LiteralPath $Path)) {
        return $false
    }
    $owner = (Get-Acl -LiteralPath $Path).GetOwner([System.Security.Principal.SecurityIdentifier]).Value
    if (@('S-1-5-18', 'S-1-5-32-544') -notcontains $owner) {
        return $true
    }
    [bool] ((Get-Item -LiteralPath $Path -Force).Attributes -band [System.IO.FileAttributes]::ReparsePoint)
}

function Remove-Whole {
    # A directory or file with all that is in it. Links in it go; where they lead is left alone, as Remove-Item of
    # PowerShell 5.1 does not promise.
    param([string] $Path)
    if ([System.IO.Directory]::Exists($Path)) {
        [System.IO.Directory]::Delete($Path, $true)
    }
    elseif ([System.IO.File]::Exists($Path)) {
        [System.IO.File]::Delete($Path)
    }
}

function Get-Task {
    # The scheduled task of that name at the top, or nothing.
    param([string] $TaskName)
    Get-ScheduledTask -TaskPath '\' -ErrorAction SilentlyContinue | Where-Object { $_.TaskName -eq $TaskName }
}

function Get-TaskSid {
    # The SID that a task of this name has in its token; Windows computes it, the task need not exist.
    param([string] $TaskName)
    $said = & "$env:SystemRoot\System32\schtasks.exe" /ShowSid /TN "\$TaskName" | Out-String
    if ($said -notmatch 'S-1-5-87(-[0-9]+)+') {
        throw "Windows did not tell the SID of the task $TaskName"
    }
    New-Object System.Security.Principal.SecurityIdentifier $Matches[0]
}

function Stop-Task {
    # Disabled first: the trigger that starts it again each minute must not. Waits until nothing runs.
    param([string] $TaskName)
    Disable-ScheduledTask -TaskPath '\' -TaskName $TaskName | Out-Null
    Stop-ScheduledTask -TaskPath '\' -TaskName $TaskName
    foreach ($turn in 1..60) {
        if ((Get-Task -TaskName $TaskName).State -ne 'Running') {
            return
        }
        Start-Sleep -Milliseconds 500
    }
    throw "the task $TaskName did not stop within 30 s"
}

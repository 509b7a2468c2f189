param([string] $TaskName)
Enable-ScheduledTask -TaskPath '\' -TaskName $TaskName | Out-Null
if ((Get-Task -TaskName $TaskName).State -ne 'Running') {
    Start-ScheduledTask -TaskPath '\' -TaskName $TaskName
}

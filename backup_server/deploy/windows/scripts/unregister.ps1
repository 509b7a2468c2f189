param([string] $TaskName)
if (Get-Task -TaskName $TaskName) {
    Stop-Task -TaskName $TaskName
    Unregister-ScheduledTask -TaskPath '\' -TaskName $TaskName -Confirm:$false
}

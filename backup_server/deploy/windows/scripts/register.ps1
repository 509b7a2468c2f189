# The worker as a scheduled task: at the start of the system, and each minute where it does not run. It imports nothing
# from a directory in which it may write.
param(
    [string] $TaskName,
    [string] $Python,
    [string] $DataDir
)
$argument = '-P -m proxy_worker.logged --data "{0}"' -f $DataDir
$action = New-ScheduledTaskAction -Execute $Python -Argument $argument -WorkingDirectory (Split-Path -Parent $Python)
$boot = New-ScheduledTaskTrigger -AtStartup
# What ends badly is not started again by RestartCount in every case; this does it in all.
$again = New-ScheduledTaskTrigger -Once -At ([datetime]::Today) -RepetitionInterval (New-TimeSpan -Minutes 1)
$settings = New-ScheduledTaskSettingsSet -MultipleInstances IgnoreNew -ExecutionTimeLimit ([timespan]::Zero) `
    -RestartCount 255 -RestartInterval (New-TimeSpan -Minutes 1) -StartWhenAvailable `
    -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries
$account = New-ScheduledTaskPrincipal -UserId 'S-1-5-19' -LogonType ServiceAccount -RunLevel Limited `
    -ProcessTokenSidType Unrestricted
Register-ScheduledTask -TaskPath '\' -TaskName $TaskName -Action $action -Trigger @($boot, $again) -Settings $settings `
    -Principal $account -Description "vmhaul backup proxy ($DataDir)" -Force | Out-Null

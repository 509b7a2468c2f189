# The program that the task starts; nothing where there is no task.
param([string] $TaskName)
$task = Get-Task -TaskName $TaskName
if ($task) {
    "$($task.Actions[0].Execute)".Trim('"')
}

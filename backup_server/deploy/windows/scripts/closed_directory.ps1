# A directory for the system, the administrators and one task, and for nobody else; so from the moment that it is made.
param(
    [string] $Path,
    [string] $TaskName
)
$flags = [System.Security.AccessControl.InheritanceFlags] 'ContainerInherit, ObjectInherit'
$none = [System.Security.AccessControl.PropagationFlags]::None
$allow = [System.Security.AccessControl.AccessControlType]::Allow
$administrators = New-Object System.Security.Principal.SecurityIdentifier 'S-1-5-32-544'
$system = New-Object System.Security.Principal.SecurityIdentifier 'S-1-5-18'
$access = New-Object System.Security.AccessControl.DirectorySecurity
$access.SetAccessRuleProtection($true, $false)
$access.SetOwner($administrators)
foreach ($grant in @(@($system, 'FullControl'), @($administrators, 'FullControl'), @((Get-TaskSid -TaskName $TaskName), 'Modify'))) {
    $rights = [System.Security.AccessControl.FileSystemRights] $grant[1]
    $rule = New-Object System.Security.AccessControl.FileSystemAccessRule $grant[0], $rights, $flags, $none, $allow
    $access.AddAccessRule($rule)
}
if (Test-Foreign -Path $Path) {
    throw "$Path was made by somebody else, or leads elsewhere"
}
if (Test-Path -LiteralPath $Path) {
    [System.IO.Directory]::SetAccessControl($Path, $access)
}
else {
    [System.IO.Directory]::CreateDirectory($Path, $access) | Out-Null
}

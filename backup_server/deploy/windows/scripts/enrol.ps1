# The token goes to a standard input: it is in no file and on no command line. Only .NET sees it, so that the logging
# of commands and their parameters has nothing of it.
param(
    [string] $Python,
    [string] $DataDir,
    [string] $Token
)
$words = @('-m', 'proxy_worker', '--data', $DataDir, '--join', 'token')
Invoke-Program -Program $Python -Words $words -What 'joining' -Text $Token -TimeoutSeconds 180 | Out-Null

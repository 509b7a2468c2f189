param([string] $Python)
$load = 'import proxy_worker.app, proxy_worker.mover_process'
Invoke-Program -Program $Python -Words @('-c', $load) -What 'loading the installed vmhaul' -TimeoutSeconds 120 | Out-Null

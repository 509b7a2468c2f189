param(
    [string] $Python,
    [string] $Directory
)
Invoke-Program -Program $Python -Words @('-m', 'venv', $Directory) -What 'making a virtual environment' | Out-Null

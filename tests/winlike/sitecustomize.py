"Python imports this by itself when this folder is on PYTHONPATH: the rules hold from the first line on"
import windows_rules

windows_rules.keep()

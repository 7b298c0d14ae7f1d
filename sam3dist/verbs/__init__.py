"""The verbs of the command line, one file each. Their heavy imports wait until they run, so that --help is quick."""

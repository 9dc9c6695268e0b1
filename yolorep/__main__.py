from yolorep.cli import main

main()

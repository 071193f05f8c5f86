// Command loadgen is both ends of the call-path bench: the callee and the caller.
//
//	loadgen upstream    answers calls; prints its port
//	loadgen drive       reads one load a line (JSON), makes it, prints one result
//
// Both carry bytes without a schema. They are compiled so that neither is what a
// proxy written in Python is held up by.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 {
		switch args[0] {
		case "upstream":
			return serve(os.Stdout)
		case "drive":
			return drive(os.Stdin, os.Stdout)
		}
	}
	return fmt.Errorf("expected one word, upstream or drive, got %q", args)
}

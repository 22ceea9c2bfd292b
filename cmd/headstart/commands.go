package main

import "github.com/spf13/cobra"

// commands is the list of all commands, in the order in which a model meets them.
func commands(p process) []*cobra.Command {
	return []*cobra.Command{
		newStageCommand(p),
		newLsCommand(p),
		newShowCommand(p),
		newVerifyCommand(p),
		newRmCommand(p),
		newGcCommand(p),
		newFetchCommand(p),
		newNodeCommand(p),
		newPublishCommand(p),
		newUnpublishCommand(p),
		newWaitCommand(p),
		newStatusCommand(p),
		newOrderCommand(p),
		newHubCommand(p),
		newBucketCommand(p),
		newReplayCommand(p),
		newDemoCommand(p),
		newBenchCommand(p),
	}
}

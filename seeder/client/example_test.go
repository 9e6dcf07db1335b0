package client_test

import (
	"context"
	"fmt"
	"os"

	"github.com/landfall-dist/landfall/seeder/client"
)

func ExampleClient_Follow() {
	server := pretend(execution("IN_PROGRESS", 0), execution("IN_PROGRESS", 512), execution("COMPLETED", 1024))
	defer server.Close()
	ctx := context.Background()

	c := client.Client{URL: server.URL} // such as http://127.0.0.1:7070
	for e, err := range c.Follow(ctx, "01K0Z4V5QW8TQ0H6Q9M3N7R2XD") {
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, d := range e.Destinations {
			fmt.Println(e.Key, "is", e.Status, "with", d.LandedBytes, "bytes in", d.Bucket)
		}
	}
	// Output:
	// build.zip is IN_PROGRESS with 0 bytes in region-a-builds
	// build.zip is IN_PROGRESS with 512 bytes in region-a-builds
	// build.zip is COMPLETED with 1024 bytes in region-a-builds
}

// A file is uploaded, sent to two regions and followed until it is there.
func Example() {
	ctx := context.Background()
	c := client.Client{URL: "http://127.0.0.1:7070", Token: os.Getenv("OPERATOR_TOKEN")}
	file, err := os.Open("build.zip")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		fmt.Println(err)
		return
	}
	stored, err := c.Upload(ctx, "build.zip", file, info.Size(), "application/zip")
	if err != nil {
		fmt.Println(err)
		return
	}
	begun, err := c.Deploy(ctx, client.DeployRequest{
		SourceBucket: stored.Bucket, SourceKey: stored.Key,
		DestinationBuckets: []string{"region-a-builds", "region-b-builds"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for e, err := range c.Follow(ctx, begun.ExecutionID) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(e.Status)
	}
}

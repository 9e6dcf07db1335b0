package cloudtest

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"
)

// The tests start and stop the cloud themselves: what stop leaves is a subject.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCloud(t *testing.T) {
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	cloud, stop := Start()
	t.Run("buckets", func(t *testing.T) {
		a, b := cloud.Bucket(t), cloud.Bucket(t)
		if a == b {
			t.Fatalf("two buckets named %s", a)
		}
		if _, err := cloud.S3.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &a, Key: aws.String("k"), Body: strings.NewReader("x")}); err != nil {
			t.Fatal(err)
		}
		out, err := cloud.S3.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &b})
		if err != nil || len(out.Contents) != 0 {
			t.Errorf("the other bucket: %v, %v", out, err)
		}
	})
	t.Run("tables", func(t *testing.T) {
		name := cloud.Table(t)
		if err := dynamodb.NewTableExistsWaiter(cloud.DynamoDB).Wait(t.Context(), &dynamodb.DescribeTableInput{TableName: &name}, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := cloud.DynamoDB.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &name, Item: map[string]types.AttributeValue{
			"fileKey": &types.AttributeValueMemberS{Value: "build.zip"}, "sourceBucket": &types.AttributeValueMemberS{Value: "global-builds"},
		}}); err != nil {
			t.Fatal(err)
		}
	})
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory left behind: %v", err)
	}
	if after, err := os.Getwd(); err != nil || after != before {
		t.Errorf("working directory %s after stop, was %s (%v)", after, before, err)
	}
}

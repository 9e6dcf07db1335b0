package awserr

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
)

// Log returns a copy of cfg whose clients log to logger: the SDK's own lines, and at
// debug each call that failed, with all that the SDK says of it.
func Log(cfg aws.Config, logger *slog.Logger) aws.Config {
	cfg = cfg.Copy()
	cfg.Logger = Logger(logger)
	cfg.APIOptions = append(slices.Clone(cfg.APIOptions), func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("LandfallErrors",
			func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
				out, metadata, err := next.HandleInitialize(ctx, in)
				if err != nil {
					logger.DebugContext(ctx, "call of AWS failed", "service", awsmiddleware.GetServiceID(ctx),
						"operation", awsmiddleware.GetOperationName(ctx), "error", err)
				}
				return out, metadata, err
			}), middleware.After)
	})
	return cfg
}

// Logger writes the SDK's own log lines to a slog.Logger.
func Logger(logger *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(class logging.Classification, format string, args ...any) {
		level := slog.LevelDebug
		if class == logging.Warn {
			level = slog.LevelWarn
		}
		logger.Log(context.Background(), level, "AWS SDK", "message", strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " "))
	})
}

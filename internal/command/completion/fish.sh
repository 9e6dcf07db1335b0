# fish completion of APP. For this shell alone:
#   APP completion fish | source
# and for all that come: write it to ~/.config/fish/completions/APP.fish
function __APP_completion
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' "$HOME" -- $words[1])
    set -e words[1]
    set -l lines ($program complete $words "$current" 2>/dev/null)
    if test "$lines[1]" = files
        __fish_complete_path "$current"
    end
    set -e lines[1]
    printf '%s\n' $lines
end
complete -c APP -f -a '(__APP_completion)'

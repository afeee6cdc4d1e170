// Reprojection: moves both eyes' pictures from the pose they were drawn with to the newest one.
// `taps` filter taps per pixel: GPU time grows linearly with it.

struct Late {
    size: vec2<u32>, // of one eye
    taps: u32,
    reserved: u32,
    rendered: vec4<f32>, // yaw, pitch, x, time
}

@group(0) @binding(0) var<uniform> late: Late;
@group(0) @binding(1) var<uniform> newest: vec4<f32>;
@group(0) @binding(2) var<storage, read> pixels: array<u32>;
@group(0) @binding(3) var shown: texture_storage_2d<rgba8unorm, write>;

// Turns by the golden angle: successive taps of a spiral fill a disc evenly.
const GOLDEN_TURN = mat2x2<f32>(-0.7373688, 0.6754903, -0.6754903, -0.7373688);

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if gid.x >= late.size.x * 2u || gid.y >= late.size.y { return; }
    let eye = gid.x / late.size.x;
    let size = vec2<f32>(late.size);
    let x = gid.x - eye * late.size.x;
    let centred = (vec2(f32(x), f32(gid.y)) + 0.5 - 0.5 * size) / (0.5 * size.y);
    // A small rotation moves the picture by its angle; 1.3 is the eye's focal length.
    let turn = newest.xy - late.rendered.xy;
    // The lens shows the middle larger than the edge.
    let radius = dot(centred, centred);
    let lens = centred * (0.94 + 0.05 * radius);
    let source = (lens + 1.3 * vec2(turn.x, -turn.y)) * 0.5 * size.y + 0.5 * size;

    let n = max(late.taps, 1u);
    var sum = vec3<f32>(0.0);
    var turned = vec2<f32>(1.0, 0.0);
    for (var i = 0u; i < n; i++) {
        // Points of a spiral fill the pixel's disc evenly for any number of them.
        turned = GOLDEN_TURN * turned;
        let r = 0.6 * sqrt((f32(i) + 0.5) / f32(n));
        let at = clamp(source + r * turned, vec2(0.0), size - 1.0);
        let index = u32(at.y) * late.size.x * 2u + eye * late.size.x + u32(at.x);
        sum += unpack4x8unorm(pixels[index]).rgb;
    }
    let inside = all(source >= vec2(0.0)) && all(source < size);
    let edge = smoothstep(3.6, 2.4, radius) * select(0.25, 1.0, inside);
    textureStore(shown, gid.xy, vec4(sum / f32(n) * edge, 1.0));
}

// Post-processing: a glow gathered with `cost` taps, tone mapping, a vignette.
// GPU time grows linearly with `cost`.

struct Pass {
    size: vec2<u32>,
    cost: u32,
    frame: u32,
}

@group(0) @binding(0) var<uniform> settings: Pass;
@group(0) @binding(1) var<storage, read> lit: array<vec4<f32>>;
@group(0) @binding(2) var shown: texture_storage_2d<rgba8unorm, write>;

// Turns by the golden angle: successive taps of a spiral fill a disc evenly.
const GOLDEN_TURN = mat2x2<f32>(-0.7373688, 0.6754903, -0.6754903, -0.7373688);

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= settings.size) { return; }
    let size = vec2<f32>(settings.size);
    let middle = vec2<f32>(gid.xy) + 0.5;
    let n = max(settings.cost, 1u);
    var glow = vec3<f32>(0.0);
    var turned = vec2<f32>(1.0, 0.0);
    for (var i = 0u; i < n; i++) {
        turned = GOLDEN_TURN * turned;
        let r = 0.09 * size.y * (f32(i) + 0.5) / f32(n);
        let at = clamp(middle + r * turned, vec2(0.0), size - 1.0);
        let tap = lit[u32(at.y) * settings.size.x + u32(at.x)].rgb;
        glow += max(tap - 0.7, vec3(0.0));
    }
    var colour = lit[gid.y * settings.size.x + gid.x].rgb + 0.9 * glow / f32(n);
    colour = colour * (2.51 * colour + 0.03) / (colour * (2.43 * colour + 0.59) + 0.14);
    let corner = (middle - 0.5 * size) / size.y;
    colour *= 1.0 - 0.35 * dot(corner, corner);
    // A square root is near enough to the display's curve, and much cheaper.
    colour = sqrt(clamp(colour, vec3(0.0), vec3(1.0)));
    textureStore(shown, gid.xy, vec4(colour, 1.0));
}
